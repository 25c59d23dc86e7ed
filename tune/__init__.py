"""Search spaces and sweeps over the dotted paths of the configuration."""
