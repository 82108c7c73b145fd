"""Rows in blocks: the ring, its priorities, and the windows of rows around one."""
