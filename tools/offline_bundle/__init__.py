"""What a machine without network needs to run this project: one directory to carry there."""
