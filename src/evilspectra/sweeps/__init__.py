"""Many runs: sweep files, plans, tuning, and the execution of sweeps."""
