"""From raw files to arrays: sources, ingestion, contract, preparation, splits, weights, vocabularies, queries."""
