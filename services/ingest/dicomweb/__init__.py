"""The DICOMweb door (PS3.18): STOW-RS in, QIDO-RS and WADO-RS out, each call with a bearer token."""
