"""Many runs: sweep files, plans, tuning, and how a sweep is carried out."""
