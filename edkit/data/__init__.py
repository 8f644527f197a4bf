"""What a data root is: samples, plans, the catalog and the journal. Imports nothing else of edkit."""
