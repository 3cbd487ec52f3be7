"""
What runs behind the routes.

 - what the server is made of: C{core} (once), C{frontend} (once for each process), C{factories}, C{topology} (a single process)
 - start, reload, end: C{start_checks}, C{announcement}, C{reloading}, C{signals}, C{systemd}, C{summary}, C{readiness},
   C{repeated}, C{cpu_profile}
 - logins: C{logins}
 - quotas: C{quota_keeper}, C{repository_counter}, C{recount}, C{kept_counts}; C{trash_expiry}
 - metrics and status: C{monitoring}, C{repository_figures}, C{activity}, C{size_history}, C{certificate_expiry}
 - the scrub: C{scrub}
 - events: C{hooks}, C{event_effects}, C{integrity}, C{kept_refusals}
"""
