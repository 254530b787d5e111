"""Recordings and transcripts: fetching, reading, checking, inspecting."""
