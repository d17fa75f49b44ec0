"""Images to features of the frozen backbone: computed online or read from a bank on disk."""
