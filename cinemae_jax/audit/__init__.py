"""What a number is worth: probes, controls, corruptions, attacks."""
