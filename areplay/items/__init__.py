"""Items: what a batch consists of, and how it is put together from rows."""
