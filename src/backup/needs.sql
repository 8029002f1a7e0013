-- What only a superuser can make, of all that pg_dump writes: kind and name of each.
WITH RECURSIVE strong(oid) AS (
    SELECT oid FROM pg_catalog.pg_roles
    WHERE rolsuper OR rolcreaterole OR rolreplication
          OR rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
    UNION SELECT member FROM pg_catalog.pg_auth_members JOIN strong ON roleid = strong.oid),
-- Members of extensions, which CREATE EXTENSION makes, and what initdb has made.
given(classid, objid) AS (
    SELECT classid, objid FROM pg_catalog.pg_depend WHERE deptype = 'e'),
owned(classid, oid, owner, schema, acl, name) AS (
    SELECT 'pg_catalog.pg_class'::regclass, class.oid, relowner, relnamespace, relacl, class.oid::regclass::text
    FROM pg_catalog.pg_class AS class WHERE relkind IN ('r', 'v', 'm', 'S', 'f', 'p') AND relpersistence <> 't'
    UNION ALL SELECT 'pg_catalog.pg_proc'::regclass, oid, proowner, pronamespace, proacl, oid::regprocedure::text FROM pg_catalog.pg_proc
    UNION ALL SELECT 'pg_catalog.pg_type'::regclass, oid, typowner, typnamespace, typacl, oid::regtype::text FROM pg_catalog.pg_type
              WHERE typtype IN ('e', 'd', 'r') OR (typtype = 'c' AND (SELECT relkind = 'c' FROM pg_catalog.pg_class AS class WHERE class.oid = typrelid))
    UNION ALL SELECT 'pg_catalog.pg_namespace'::regclass, oid, nspowner, NULL, nspacl, nspname FROM pg_catalog.pg_namespace
    UNION ALL SELECT 'pg_catalog.pg_operator'::regclass, oid, oprowner, oprnamespace, NULL, oid::regoperator::text FROM pg_catalog.pg_operator
    UNION ALL SELECT 'pg_catalog.pg_collation'::regclass, oid, collowner, collnamespace, NULL, collname FROM pg_catalog.pg_collation
    UNION ALL SELECT 'pg_catalog.pg_conversion'::regclass, oid, conowner, connamespace, NULL, conname FROM pg_catalog.pg_conversion
    UNION ALL SELECT 'pg_catalog.pg_statistic_ext'::regclass, oid, stxowner, stxnamespace, NULL, stxname FROM pg_catalog.pg_statistic_ext
    UNION ALL SELECT 'pg_catalog.pg_ts_config'::regclass, oid, cfgowner, cfgnamespace, NULL, cfgname FROM pg_catalog.pg_ts_config
    UNION ALL SELECT 'pg_catalog.pg_ts_dict'::regclass, oid, dictowner, dictnamespace, NULL, dictname FROM pg_catalog.pg_ts_dict
    UNION ALL SELECT 'pg_catalog.pg_foreign_server'::regclass, oid, srvowner, NULL, srvacl, srvname FROM pg_catalog.pg_foreign_server
    UNION ALL SELECT 'pg_catalog.pg_publication'::regclass, oid, pubowner, NULL, NULL, pubname FROM pg_catalog.pg_publication
    UNION ALL SELECT 'pg_catalog.pg_largeobject'::regclass, oid, lomowner, NULL, lomacl, 'large object ' || oid FROM pg_catalog.pg_largeobject_metadata
    UNION ALL SELECT 'pg_catalog.pg_default_acl'::regclass, oid, defaclrole, NULL, NULL, 'default privileges' FROM pg_catalog.pg_default_acl),
-- 16384 is FirstNormalObjectId (src/include/access/transam.h).
ours AS (
    SELECT * FROM owned
    WHERE (oid >= 16384 OR name = 'public' OR classid = 'pg_catalog.pg_largeobject'::regclass) AND NOT EXISTS (SELECT FROM given WHERE given.classid = owned.classid AND given.objid = owned.oid)
          AND schema IS DISTINCT FROM 'pg_toast'::regnamespace),
database AS (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
SELECT 'event trigger ' || evtname FROM pg_catalog.pg_event_trigger AS it
    WHERE NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_event_trigger'::regclass AND objid = it.oid)
UNION ALL SELECT 'publication ' || pubname FROM pg_catalog.pg_publication AS it
    WHERE puballtables OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace WHERE pnpubid = it.oid)
UNION ALL SELECT 'subscription ' || subname FROM pg_catalog.pg_subscription
UNION ALL SELECT 'foreign-data wrapper ' || fdwname FROM pg_catalog.pg_foreign_data_wrapper AS it
    WHERE NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_foreign_data_wrapper'::regclass AND objid = it.oid)
UNION ALL SELECT 'foreign server ' || srvname FROM pg_catalog.pg_foreign_server
UNION ALL SELECT 'language ' || lanname FROM pg_catalog.pg_language AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_language'::regclass AND objid = it.oid)
UNION ALL SELECT 'function ' || it.oid::regprocedure::text FROM pg_catalog.pg_proc AS it JOIN pg_catalog.pg_language AS lang ON lang.oid = prolang
    JOIN ours ON ours.classid = 'pg_catalog.pg_proc'::regclass AND ours.oid = it.oid
    WHERE prokind <> 'a' AND (NOT lanpltrusted AND lanname <> 'sql' OR proleakproof)
UNION ALL SELECT 'type ' || oid::regtype::text FROM pg_catalog.pg_type AS it
    WHERE oid >= 16384 AND typtype = 'b' AND typelem = 0
          AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_type'::regclass AND objid = it.oid)
UNION ALL SELECT 'operator class ' || opcname FROM pg_catalog.pg_opclass AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_opclass'::regclass AND objid = it.oid)
UNION ALL SELECT 'operator family ' || opfname FROM pg_catalog.pg_opfamily AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_opfamily'::regclass AND objid = it.oid)
UNION ALL SELECT 'access method ' || amname FROM pg_catalog.pg_am AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_am'::regclass AND objid = it.oid)
UNION ALL SELECT 'text search parser ' || prsname FROM pg_catalog.pg_ts_parser AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_ts_parser'::regclass AND objid = it.oid)
UNION ALL SELECT 'text search template ' || tmplname FROM pg_catalog.pg_ts_template AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_ts_template'::regclass AND objid = it.oid)
UNION ALL SELECT 'cast from ' || castsource::regtype::text FROM pg_catalog.pg_cast AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_cast'::regclass AND objid = it.oid)
UNION ALL SELECT 'transform for ' || trftype::regtype::text FROM pg_catalog.pg_transform AS it
    WHERE oid >= 16384 AND NOT EXISTS (SELECT FROM given WHERE classid = 'pg_catalog.pg_transform'::regclass AND objid = it.oid)
UNION ALL SELECT 'rows of extension ' || extname FROM pg_catalog.pg_extension WHERE extconfig IS NOT NULL
UNION ALL SELECT 'security label' FROM pg_catalog.pg_seclabel
-- Owned by a superuser or the like, or by a role that may not make it where it is before the dump's grants are in.
UNION ALL SELECT 'the owner of ' || name FROM ours
    WHERE owner IN (SELECT oid FROM strong)
          OR owner <> (SELECT datdba FROM database) AND owner <> 'pg_database_owner'::regrole
             AND (schema IS NOT NULL AND owner <> (SELECT nspowner FROM pg_catalog.pg_namespace WHERE oid = schema)
                  OR classid IN ('pg_catalog.pg_namespace'::regclass, 'pg_catalog.pg_publication'::regclass))
-- Granted by somebody else than the owner: pg_dump writes SET SESSION AUTHORIZATION.
UNION ALL SELECT 'a grant on ' || name FROM ours, pg_catalog.aclexplode(acl) AS it WHERE it.grantor <> owner
-- What is the system's or an extension's, with other rights than it came with.
UNION ALL SELECT 'rights on ' || name FROM owned LEFT JOIN pg_catalog.pg_init_privs AS it ON it.objoid = owned.oid AND it.classoid = owned.classid AND it.objsubid = 0
    WHERE acl IS DISTINCT FROM it.initprivs AND owned.classid <> 'pg_catalog.pg_largeobject'::regclass AND name NOT IN ('public', 'information_schema')
          AND schema IS DISTINCT FROM 'information_schema'::regnamespace
          AND (oid < 16384 OR EXISTS (SELECT FROM given WHERE given.classid = owned.classid AND given.objid = owned.oid))
LIMIT 100
