"""Joins exposures with feedback into labelled training samples."""
