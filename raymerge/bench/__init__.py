"""Measurements that a user can repeat: what merging costs against the published way of computing it."""
