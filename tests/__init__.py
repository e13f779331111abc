"""Tests, in the shape of the house."""
