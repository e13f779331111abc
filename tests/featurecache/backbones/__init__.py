"""Tests of the frozen models."""
