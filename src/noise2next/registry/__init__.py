"""MLflow lives here only: tracking, packaging, promotion."""
