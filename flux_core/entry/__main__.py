from .flux_core.cli import main

raise SystemExit(main())
