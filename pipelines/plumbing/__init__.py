"""What stages share: session, folder, tracking, progress, diagnostics, jobs."""
