"""A plan as jobs: profiles, arrays, a snapshot of the code, and what becomes of the jobs."""
