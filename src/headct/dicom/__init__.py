"""DICOM files -> one series in HU."""
