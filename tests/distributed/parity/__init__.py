"""Every layout against one process: what is compared, and the table."""
