"""The errors a user can meet: each says what went wrong, where, what was expected, what was found and what to do."""

from __future__ import annotations


class SanaEdgeError(Exception):
    """Base of every error a user can fix. The command line prints it without a traceback and exits with `exit_code`."""

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, expected: object = None, got: object = None, fix: str | None = None
    ) -> None:
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix
        super().__init__(what)

    def __str__(self) -> str:
        fields = (("where", self.where), ("expected", self.expected), ("got", self.got), ("fix", self.fix))
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in fields if value is not None)])


class InputError(SanaEdgeError):
    """A value or file that the user gave cannot be used."""


class UsageError(SanaEdgeError):
    """The command line itself is wrong."""

    exit_code = 2


class ArtefactError(SanaEdgeError):
    """A file or folder is damaged, incomplete, or does not belong to its parent."""


class FormatError(SanaEdgeError):
    """A number format cannot hold this tensor or does not run on this GPU."""


class BackendError(SanaEdgeError):
    """A backend cannot run here, or failed while running."""


class GateError(SanaEdgeError):
    """A quality threshold was missed."""

    exit_code = 3


class MissingExtraError(SanaEdgeError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed",
            fix=f"pip install 'sana-edge[{extra}]'",
        )
