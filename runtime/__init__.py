"""What a desktop needs to make a video from a bundle, and the words every other folder shares."""
