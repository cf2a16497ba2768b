"""Pure statistics: counts in, intervals and conclusions out."""
