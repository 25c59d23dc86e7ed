"""Images, audio and video of items."""
