"""From YAML to checked settings and functions: schema, ranges, resolvers, requirements."""
