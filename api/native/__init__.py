"""The native dialect: prompts, runs and backends in the service's own words."""
