"""Settings: the sections of a run's config, read from YAML files, presets and assignments."""
