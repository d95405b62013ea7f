"""Text to Recipe: YAML, schema, validation, parameters. Reads no model."""
