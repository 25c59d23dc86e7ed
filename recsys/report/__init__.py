"""The HTML report: panels, charts, templates."""
