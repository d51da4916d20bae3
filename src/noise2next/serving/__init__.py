"""The champion over HTTP: follows the registry's alias, batches what waits, and says which version answered."""
