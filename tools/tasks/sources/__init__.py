"""What tasks are made of: a file each of packages that tell alike."""
