"""Where the runs of a sweep are carried out: in this process, in workers, on a Ray or a Slurm
cluster.
"""
