"""Comparisons with the recorded numbers of the original implementations."""
