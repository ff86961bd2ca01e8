"""Results that a PACS takes and a viewer opens: what was decided, as DICOM objects of the original study."""
