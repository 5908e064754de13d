"""The catalogue's tables, as migrations: each entry is applied once, in order, and never edited again.

Times are Unix seconds (UTC). Statuses and termination reasons are spelled as microsandbox 0.5.6 does.
"""

from __future__ import annotations

MIGRATIONS = (
    """
    CREATE TABLE manifest (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        media_type TEXT NOT NULL,
        architecture TEXT,
        os TEXT,
        variant TEXT,
        layer_count INTEGER NOT NULL,
        total_size_bytes INTEGER,
        rootfs_bytes INTEGER NOT NULL,
        created_at REAL NOT NULL
    );
    CREATE TABLE image_ref (
        id INTEGER PRIMARY KEY,
        reference TEXT NOT NULL UNIQUE,
        display TEXT NOT NULL,
        manifest_id INTEGER NOT NULL REFERENCES manifest(id),
        created_at REAL NOT NULL,
        last_used_at REAL NOT NULL
    );
    CREATE TABLE config (
        manifest_id INTEGER PRIMARY KEY REFERENCES manifest(id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        document TEXT NOT NULL
    );
    CREATE TABLE layer (
        id INTEGER PRIMARY KEY,
        diff_id TEXT NOT NULL UNIQUE,
        blob_digest TEXT NOT NULL,
        media_type TEXT,
        compressed_size INTEGER,
        last_used_at REAL NOT NULL
    );
    CREATE TABLE manifest_layer (
        manifest_id INTEGER NOT NULL REFERENCES manifest(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        layer_id INTEGER NOT NULL REFERENCES layer(id),
        PRIMARY KEY (manifest_id, position)
    );
    CREATE TABLE sandbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        config TEXT NOT NULL,
        status TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL
    );
    CREATE TABLE sandbox_label (
        sandbox_id INTEGER NOT NULL REFERENCES sandbox(id) ON DELETE CASCADE,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (sandbox_id, key)
    );
    CREATE TABLE sandbox_rootfs (
        sandbox_id INTEGER PRIMARY KEY REFERENCES sandbox(id) ON DELETE CASCADE,
        manifest_id INTEGER NOT NULL REFERENCES manifest(id)
    );
    CREATE TABLE run (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sandbox_id INTEGER NOT NULL REFERENCES sandbox(id) ON DELETE CASCADE,
        pid INTEGER NOT NULL,
        pid_started INTEGER NOT NULL,
        supervised INTEGER NOT NULL DEFAULT 0,
        status TEXT NOT NULL,
        exit_code INTEGER,
        exit_signal INTEGER,
        termination_reason TEXT,
        termination_detail TEXT,
        started_at REAL NOT NULL,
        terminated_at REAL
    );
    CREATE INDEX run_by_sandbox ON run(sandbox_id, status);
    """,
    # After a restart of the host a pid and its start, counted from the boot, may both come again. What was
    # killed on purpose is told from what has crashed also by others than the killer, who may be dead, too.
    """
    ALTER TABLE run ADD COLUMN boot_id TEXT;
    ALTER TABLE run ADD COLUMN signals_sent TEXT;
    """,
)
