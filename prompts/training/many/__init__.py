"""Folders of tasks, trained in processes side by side."""
