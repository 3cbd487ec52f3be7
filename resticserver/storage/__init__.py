"""
Repositories and where they are kept. Knows no HTTP and no reactor: plain blocking Python, safe from several threads.

 - C{interface}: what a store can do; C{local}, C{readonly}: the store of files, on C{directories} and C{layout}
 - an upload: C{upload} (verify, flush, publish, flush the directory), C{publish}, C{durable}, C{free_space}; C{sweep} removes
   what a killed server has left
 - deleted objects: C{trash} (where they lie, until when), C{trash_keep} (in), C{trash_restore} (out, and the end), C{trash_moves}
 - reading: C{reading}, C{nowait}
 - lists: C{listing}, C{directory_snapshots}, C{filesystem_types}
 - everything read again: C{scrub}, C{scrub_survey}, C{scrub_state}, C{deletions}; C{scrubbed} what that needs of the place of
   the objects, C{scrubbed_files} for files, with C{object_directory}, C{object_check}, C{page_cache}
 - which path is which: C{folding}, C{volume}
 - what is known for the next start: C{counting}, C{state}, C{database}
"""
