"""Where it runs: Ray on this machine or a cluster that is joined."""
