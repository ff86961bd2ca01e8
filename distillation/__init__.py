"""The workshop: from masked radiographs to teachers, a student, its compressed form and a release."""
