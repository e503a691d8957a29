"""Parts of the report's page."""
