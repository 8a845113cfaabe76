"""Values passed between two running workflows, and the runs that pass them."""
