"""Selectors: which rows the items of a batch are drawn by."""
