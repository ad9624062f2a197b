"""From YAML to checked settings and functions: schema, ranges, resolvers, and what a run requires."""
