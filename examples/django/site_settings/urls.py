from django.urls import path

from notes import views

urlpatterns = [path("", views.root), path("notes", views.create), path("notes/<int:note_id>", views.read)]
