"""Studies from a PACS: by DICOMweb, C-GET or C-MOVE."""
