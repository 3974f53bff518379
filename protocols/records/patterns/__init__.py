"""Rules that look at several readings, or at their absence: sequences, absences, repetitions and joins."""
