"""The procedural world of the nano model: scenes and captions, a renderer, an analytic judge."""
