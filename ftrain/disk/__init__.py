"""All that writes: durable, sealed, locked."""
