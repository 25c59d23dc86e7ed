"""Shared parts of the stages: session, folder, tracking, progress, diagnostics, jobs."""
