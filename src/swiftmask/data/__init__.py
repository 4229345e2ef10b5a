"""Data made by the project itself; nothing here is downloaded."""
