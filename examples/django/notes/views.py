import json

from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_POST

from .models import Note


@require_GET
def root(request):
    return JsonResponse({"notes": list(Note.objects.order_by("id").values_list("text", flat=True))})


@require_POST
def create(request):
    text = str(json.loads(request.body).get("text", ""))
    if not 0 < len(text) <= 200:
        return JsonResponse({"error": "text: 1 to 200 characters"}, status=422)
    note = Note.objects.create(text=text)
    return JsonResponse({"id": note.id, "text": note.text}, status=201)


@require_GET
def read(request, note_id):
    note = get_object_or_404(Note, pk=note_id)
    return JsonResponse({"id": note.id, "text": note.text})
