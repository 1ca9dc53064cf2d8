"""Read what runs recorded: metrics, results, tables, figures, reports and sweeps."""
